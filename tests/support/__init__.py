"""What the tests of every floor share: probes of the machine, mounts, trees as values, and the tidying up."""
