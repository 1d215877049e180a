"""What the results say: each figure is a function that makes numbers and one that draws them."""
