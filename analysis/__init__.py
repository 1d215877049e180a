"""What a study's results say. A figure's module has a function that computes, one that draws and one that writes."""
