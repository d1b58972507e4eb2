"""Records in, batches out: one record type and one reading path for every data set."""
