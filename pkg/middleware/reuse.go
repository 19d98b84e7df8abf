//go:build !race

package middleware

// Reuse says whether what a request has used may serve another. Under the race
// detector it may not: there, whoever uses something after its request has
// ended finds it emptied, and panics, rather than another request's.
const Reuse = true
