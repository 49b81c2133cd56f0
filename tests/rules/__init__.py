"""Each rule of the protocol: the test for it, and a switch that turns the rule off, so that the test is seen red."""
