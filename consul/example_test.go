package consul_test

import (
	"context"
	"log"
	"net"
	"net/http"
	"os/signal"
	"syscall"
	"time"

	"github.com/proconsul/proconsul/consul"
)

// A whole service: it registers itself, and on SIGTERM deregisters, serves on
// until every gateway has heard of it, and finishes what is in flight.
func ExampleRegistrar() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()

	http.HandleFunc("/healthz", func(http.ResponseWriter, *http.Request) {})
	ln, err := net.Listen("tcp", ":9000")
	if err != nil {
		log.Fatal(err)
	}

	client, err := consul.NewClient(consul.Options{}) // CONSUL_HTTP_ADDR, CONSUL_HTTP_TOKEN, ...
	if err != nil {
		log.Fatal(err)
	}
	registrar, err := consul.NewRegistrar(client, consul.Registration{
		Name:    "orders",
		Port:    9000,
		Tags:    []string{"proconsul-/orders"},
		Meta:    map[string]string{"version": "v2"},
		Weights: consul.Weights{Passing: 5, Warning: 1},
		Check:   consul.Check{HTTP: "/healthz", Interval: time.Second},
	}, consul.RegistrarOptions{})
	if err != nil {
		log.Fatal(err)
	}
	if err := registrar.Serve(ctx, &http.Server{Handler: http.DefaultServeMux}, ln); err != nil {
		log.Fatal(err)
	}
}
