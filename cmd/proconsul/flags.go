package main

import (
	"cmp"
	"os"

	"github.com/spf13/cobra"

	"github.com/proconsul/proconsul/pkg/admin/client"
)

// gatewayFlags say which running gateway a command talks to, and how.
type gatewayFlags struct{ address, caCert, clientCert, clientKey string }

func (f *gatewayFlags) add(cmd *cobra.Command) {
	text := func(p *string, flag, variable, preset, help string) {
		cmd.Flags().StringVar(p, flag, cmp.Or(os.Getenv(variable), preset), help+" ("+variable+")")
	}
	text(&f.address, "address", "PROCONSUL_ADDR", "127.0.0.1:8081", "the gateway's admin address: HOST:PORT, https://HOST:PORT or unix:PATH")
	text(&f.caCert, "ca-cert", "PROCONSUL_CACERT", "", "PEM file of those who issue the gateway's certificate")
	text(&f.clientCert, "client-cert", "PROCONSUL_CLIENT_CERT", "", "PEM file of the certificate to show")
	text(&f.clientKey, "client-key", "PROCONSUL_CLIENT_KEY", "", "PEM file of its key")
}

// client returns a client as the flags and the rest of o say.
func (f *gatewayFlags) client(o client.Options) (*client.Client, error) {
	o.Address, o.CACert, o.ClientCert, o.ClientKey = f.address, f.caCert, f.clientCert, f.clientKey
	c, err := client.New(o)
	if err != nil {
		return nil, invalid{err}
	}
	return c, nil
}
