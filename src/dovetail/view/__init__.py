"""What is inside an engine, as pages, graphs and traces that other programs open."""
