"""What a simulation is worth: geometry, distributions and time correlations, compared with the snapshots."""
