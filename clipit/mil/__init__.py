"""Labels of slides and patients: multiple-instance learning on stored features."""
