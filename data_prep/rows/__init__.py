"""Raw inputs to raw records: which files a source names, how they are read, which rows are chosen."""
