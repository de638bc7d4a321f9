"""`lbctl`: one file per noun; what they share is in session, options, change, wait and output."""
