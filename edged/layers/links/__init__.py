"""How stages reach each other: one direction at a time, by transport."""
