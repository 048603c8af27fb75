"""What a run is: the schema of every setting, and the yaml groups it is composed from."""
