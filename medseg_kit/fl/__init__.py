"""Federated learning: strategies, clients, simulation and ledger."""
