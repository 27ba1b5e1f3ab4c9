"""The bundled checkpoint by one command and a budget of time: autoencoder, towers, network, the file, its evaluation.

What trains here imports neither tyro nor pydantic, yaml, av or kornia: a machine with a GPU and little else will do.
"""
