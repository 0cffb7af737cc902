"""What is wrong with rows before anything is learned from them."""
