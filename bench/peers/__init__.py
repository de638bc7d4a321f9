"""What others do, faithfully, to be measured beside lb. Nothing here is part of the product."""
