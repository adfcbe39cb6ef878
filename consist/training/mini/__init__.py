"""How the embedded model and its reader are made."""
