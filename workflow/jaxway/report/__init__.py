"""The report: page, tables and plots."""
