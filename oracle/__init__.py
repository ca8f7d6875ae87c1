"""Programs of guest actions, run on the model and on a target: compare, explain, shrink, replay.  The command is `xenspec`."""
