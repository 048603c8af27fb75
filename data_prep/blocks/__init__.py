"""Preparation in many processes: blocks of records, who works on them, and how they become one source."""
