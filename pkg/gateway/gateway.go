// Package gateway turns a configuration into one immutable table of routes
// and serves requests by it: match, the route's chain of middlewares, then its
// upstream. It is the only door to gorilla/mux. It never touches what lives on
// across a reload: pools, breakers and connections are handed in by name.
package gateway
