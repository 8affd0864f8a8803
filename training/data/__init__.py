"""Data files and their licences; see ATTRIBUTION.md beside them."""
