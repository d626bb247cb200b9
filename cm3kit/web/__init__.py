"""The web as training data: any page in, records and token shards out."""
