"""Web pages whose pictures are tokens: generate them, and fill the gaps in them."""
