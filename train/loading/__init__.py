"""Models, configs and adapters that others wrote: read in one place, their code never run unless a user says so."""
