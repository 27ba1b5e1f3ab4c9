"""Trains the bundled checkpoint with one command and a time budget: autoencoder, towers, network, file, evaluation.

Training imports neither tyro nor pydantic, yaml, av or kornia, so that it runs on a machine with few packages.
"""
