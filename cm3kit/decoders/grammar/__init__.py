"""What may stand where: constraints that both decoders obey, in any order of writing."""
