"""Power: switch a board off and on; a file a driver."""
