"""What every transport must do, whatever its broker: one suite, run on each of them."""
