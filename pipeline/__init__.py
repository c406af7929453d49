"""Train, evaluate, export, check, register and promote a variational autoencoder."""
