"""Raw files as they lie on a disk: which of a folder are meant, their text as UTF-8, the JSON values in it."""
