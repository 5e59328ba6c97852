"""The frozen reference: what it says about every pair, computed once by Ray actors and read by row id."""
