"""Second thoughts: rules that hide or change what is already written."""
