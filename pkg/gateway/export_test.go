package gateway

// StepNames returns the names of all steps, outermost first.
func StepNames() []string {
	var names []string
	for _, s := range steps() {
		names = append(names, s.name)
	}
	return names
}
