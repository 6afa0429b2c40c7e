"""Twenty hospitals train a tumour classifier; nobody sees a hospital's update."""
