"""The emulator's own tests of StandaloneMM against the real image."""
