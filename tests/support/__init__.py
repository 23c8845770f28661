"""What several tests need: archives built by hand, trees compared, processes watched."""
