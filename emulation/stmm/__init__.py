"""StandaloneMM: MM envelope, variable service, flash, fault tolerant write, authentication."""
