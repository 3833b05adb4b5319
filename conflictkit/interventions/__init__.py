"""Interventions: changes to logits (`contrast`) and to activations."""
