"""The variational autoencoder: networks, likelihoods, objective, and the operations it offers."""
