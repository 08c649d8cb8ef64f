"""Which image stands at which place of a run, and what each draws there."""
