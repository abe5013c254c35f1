"""The transport kit, run on every transport and on every profile of the test harness."""
