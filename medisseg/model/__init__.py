"""The Med-DisSeg network: encoders, Stage I head, Stage II decoder, and its inference form."""
