package app_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/proconsul/proconsul/config"
	"github.com/proconsul/proconsul/pkg/parts"
)

// callee is a gRPC service that does what a call's payload asks for.
type callee struct {
	pb.UnimplementedTestServiceServer
	calls    atomic.Int64
	left     chan struct{} // told when a call of FullDuplexCall was canceled
	deadline chan time.Duration
	end      chan struct{} // closed at the end of the test
}

func (c *callee) UnaryCall(ctx context.Context, in *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	c.calls.Add(1)
	if at, ok := ctx.Deadline(); ok {
		select {
		case c.deadline <- time.Until(at):
		default:
		}
	}
	md, _ := metadata.FromIncomingContext(ctx)
	_ = grpc.SetHeader(ctx, metadata.Pairs("x-told", strings.Join(md.Get("x-tell"), "+")))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("x-last-bin", "\x00\xff"))
	if s := in.GetResponseStatus(); s != nil {
		return nil, status.Error(codes.Code(s.Code), s.Message)
	}
	if string(in.GetPayload().GetBody()) == "hang" {
		<-c.end // whatever the context says
	}
	return &pb.SimpleResponse{Payload: in.Payload}, nil
}

func (c *callee) StreamingOutputCall(in *pb.StreamingOutputCallRequest, s grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for _, p := range in.ResponseParameters {
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.Size)}}); err != nil {
			return err
		}
	}
	if st := in.GetResponseStatus(); st != nil {
		return status.Error(codes.Code(st.Code), st.Message)
	}
	return nil
}

func (c *callee) StreamingInputCall(s grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	var sum int32
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return s.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: sum})
		} else if err != nil {
			return err
		}
		sum += int32(len(in.GetPayload().GetBody()))
	}
}

func (c *callee) FullDuplexCall(s grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	for {
		in, err := s.Recv()
		if err == io.EOF {
			return nil
		} else if err != nil {
			if s.Context().Err() != nil {
				close(c.left)
			}
			return err
		}
		if err := s.Send(&pb.StreamingOutputCallResponse{Payload: in.Payload}); err != nil {
			return err
		}
	}
}

// startCallee serves the service, over TLS where there is a certificate.
func startCallee(t *testing.T, pair *tls.Certificate) (*callee, string) {
	t.Helper()
	c := &callee{left: make(chan struct{}), deadline: make(chan time.Duration, 1), end: make(chan struct{})}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := []grpc.ServerOption{grpc.MaxRecvMsgSize(32 << 20)}
	if pair != nil {
		o = append(o, grpc.Creds(credentials.NewServerTLSFromCert(pair)))
	}
	s := grpc.NewServer(o...)
	pb.RegisterTestServiceServer(s, c)
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	t.Cleanup(func() {
		close(c.end)
		s.Stop()
		if err := <-done; err != nil {
			t.Errorf("gRPC server: %v", err)
		}
	})
	return c, l.Addr().String()
}

const callRoutes = `consumers: [{name: acme, api_keys: [{id: a, sha256: "85dbe15d75ef9308c7ae0f33c7a324cc6f4bf519a2ed2f3027bd33c140a4f9aa"}]}]
routes:
  - {name: key, match: {path: "/grpc.testing.TestService/**", headers: [{name: x-case, value: key}]}, auth: {any_of: [api-key]}, upstream: {service: calls}}
  - {name: group, match: {path: "/grpc.testing.TestService/**", headers: [{name: x-case, value: group}]}, auth: {any_of: [api-key], groups: [none]}, upstream: {service: calls}}
  - {name: limit, match: {path: "/grpc.testing.TestService/**", headers: [{name: x-case, value: limit}]}, rate_limit: {limits: [1/1h]}, upstream: {service: calls}}
  - {name: half, match: {path: "/grpc.testing.TestService/**", headers: [{name: x-case, value: half}]}, upstream: {service: half}}
  - {name: dead, match: {path: "/grpc.testing.TestService/**", headers: [{name: x-case, value: dead}]}, upstream: {service: dead}}
  - {name: slow, match: {path: "/grpc.testing.TestService/**", headers: [{name: x-case, value: slow}]}, upstream: {service: calls, timeout: 200ms}}
  - {name: all, match: {path: "/grpc.testing.TestService/**"}, upstream: {service: calls}}
`

// TestGRPC makes every kind of call through the gateway, in the clear and over
// TLS on both sides.
func TestGRPC(t *testing.T) {
	ca := parts.NewAuthority(t, "test")
	dir := t.TempDir()
	in := func(name string) string { return filepath.Join(dir, name) }
	ca.Issue(t, parts.Leaf{Name: "gateway", Names: []string{"127.0.0.1"}}).WriteTo(t, in("gw.crt"), in("gw.key"))
	ca.WriteTo(t, in("ca.pem"))
	instance := ca.Issue(t, parts.Leaf{Name: "instance", Names: []string{"calls.internal"}}).Pair(t)
	dead := parts.FreePorts(t, 1)[0]
	for _, secure := range []bool{false, true} {
		name, pair, creds := "clear", (*tls.Certificate)(nil), insecure.NewCredentials()
		listener, scheme := "", "scheme: h2c"
		if secure {
			name, pair, creds = "TLS", &instance, credentials.NewTLS(&tls.Config{RootCAs: ca.Pool()})
			listener = fmt.Sprintf(", tls: {certificates: [{cert_file: %q, key_file: %q}]}", in("gw.crt"), in("gw.key"))
			scheme = fmt.Sprintf("scheme: https, tls: {ca_file: %q, server_name: calls.internal}", in("ca.pem"))
		}
		t.Run(name, func(t *testing.T) {
			service, addr := startCallee(t, pair)
			gw := startReading(t, fmt.Sprintf(`version: 1
listen: [{name: public, addr: "127.0.0.1:0"%s}]
admin: {addr: "127.0.0.1:0"}
shutdown: {delay: 0s, grace: 1s}
consul: {disabled: true}
upstreams:
  - {name: calls, %s, instances: [{address: %q}]}
  - {name: half, %s, instances: [{address: %q}, {address: "127.0.0.1:%d"}], outlier: {disabled: true}, breaker: {disabled: true}, retry: {min_rate: 1000}}
  - {name: dead, %s, instances: [{address: "127.0.0.1:%d"}]}
%s`, listener, scheme, addr, scheme, addr, dead, scheme, dead, callRoutes), config.LoadOptions{})
			conn, err := grpc.NewClient("passthrough:///"+gw.app.Addr("public"), grpc.WithTransportCredentials(creds), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(32<<20)))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { conn.Close() })
			calls(t, pb.NewTestServiceClient(conn), service)
			refusals(t, conn, gw)
			deadlines(t, pb.NewTestServiceClient(conn), service, gw, ca)
		})
	}
}

// calls makes the four kinds of calls. The first ones may meet an instance that
// refuses the connection: nothing of them was sent, so they go elsewhere.
func calls(t *testing.T, c pb.TestServiceClient, service *callee) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	large := bytes.Repeat([]byte("0123456789abcdef"), 512<<10) // 8 MiB, far more than a flow-control window
	for range 4 {
		var header, trailer metadata.MD
		out, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-case", "half", "x-tell", "a", "x-tell", "b"), &pb.SimpleRequest{Payload: &pb.Payload{Body: large}}, grpc.Header(&header), grpc.Trailer(&trailer))
		if err != nil || !bytes.Equal(out.GetPayload().GetBody(), large) {
			t.Fatalf("unary: %v, %d bytes", err, len(out.GetPayload().GetBody()))
		}
		if got := header.Get("x-told"); len(got) != 1 || got[0] != "a+b" {
			t.Errorf("header %v", header)
		}
		if got := trailer.Get("x-last-bin"); len(got) != 1 || got[0] != "\x00\xff" {
			t.Errorf("trailer %q", trailer)
		}
	}

	before := service.calls.Load()
	_, err := c.UnaryCall(ctx, &pb.SimpleRequest{ResponseStatus: &pb.EchoStatus{Code: int32(codes.Unavailable), Message: "busy \t\u00e4 %"}})
	if s := status.Convert(err); s.Code() != codes.Unavailable || s.Message() != "busy \t\u00e4 %" {
		t.Errorf("an instance's own status came as %v", err)
	}
	if n := service.calls.Load() - before; n != 1 {
		t.Errorf("a call that an instance has refused was made %d times: it may have been handled", n)
	}

	down, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 1}, {Size: 1 << 20}, {Size: 3}},
		ResponseStatus: &pb.EchoStatus{Code: int32(codes.DataLoss), Message: "that is all"}})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for {
		m, err := down.Recv()
		if err != nil {
			if s := status.Convert(err); s.Code() != codes.DataLoss || s.Message() != "that is all" {
				t.Errorf("server streaming ended with %v", err)
			}
			break
		}
		sizes = append(sizes, len(m.GetPayload().GetBody()))
	}
	if fmt.Sprint(sizes) != "[1 1048576 3]" {
		t.Errorf("server streaming brought %v", sizes)
	}

	up, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 20 {
		if err := up.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: large[:256<<10]}}); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := up.CloseAndRecv(); err != nil || sum.AggregatedPayloadSize != 20*256<<10 {
		t.Errorf("client streaming: %v, %v", sum, err)
	}

	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 50 {
		word := fmt.Sprint("message ", i)
		if err := both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte(word)}}); err != nil {
			t.Fatal(err)
		}
		if m, err := both.Recv(); err != nil || string(m.GetPayload().GetBody()) != word {
			t.Fatalf("message %d: got %v, %v", i, m, err)
		}
	}
	if err := both.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if _, err := both.Recv(); err != io.EOF {
		t.Errorf("bidi streaming ended with %v", err)
	}

	leaving, leave := context.WithCancel(ctx)
	gone, err := c.FullDuplexCall(leaving)
	if err != nil {
		t.Fatal(err)
	}
	if err := gone.Send(&pb.StreamingOutputCallRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Recv(); err != nil {
		t.Fatal(err)
	}
	leave()
	select {
	case <-service.left:
	case <-ctx.Done():
		t.Error("the instance never heard that the client has left")
	}
}

// refusals has the gateway refuse calls itself.
func refusals(t *testing.T, conn *grpc.ClientConn, gw *inside) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := pb.NewTestServiceClient(conn)
	for _, tt := range []struct {
		name string
		md   []string
		code codes.Code
		text string
	}{
		{"no key", []string{"x-case", "key"}, codes.Unauthenticated, "Credentials are missing or not valid"},
		{"a key", []string{"x-case", "key", "x-api-key", "secret-key"}, codes.OK, ""},
		{"not in the group", []string{"x-case", "group", "x-api-key", "secret-key"}, codes.PermissionDenied, "in none of the groups"},
		{"the one call of the hour", []string{"x-case", "limit"}, codes.OK, ""},
		{"one too many", []string{"x-case", "limit"}, codes.ResourceExhausted, "Too many requests"},
		{"nobody there", []string{"x-case", "dead"}, codes.Unavailable, "refused the connection"},
	} {
		var header metadata.MD
		_, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, tt.md...), &pb.SimpleRequest{}, grpc.Header(&header))
		if s := status.Convert(err); s.Code() != tt.code || !strings.Contains(s.Message(), tt.text) {
			t.Errorf("%s: got %v, want %v %q", tt.name, err, tt.code, tt.text)
		}
	}
	_, err := c.UnaryCall(metadata.AppendToOutgoingContext(ctx, "x-case", "slow"), &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte("hang")}})
	if s := status.Convert(err); s.Code() != codes.DeadlineExceeded || !strings.Contains(s.Message(), "did not answer in time") {
		t.Errorf("longer than the route allows: got %v", err)
	}
	if err := conn.Invoke(ctx, "/shop.Orders/Get", &pb.Empty{}, &pb.Empty{}); status.Code(err) != codes.Unimplemented {
		t.Errorf("a service without a route: got %v", err)
	}
	// A stream is refused as a call is.
	both, err := c.FullDuplexCall(metadata.AppendToOutgoingContext(ctx, "x-case", "key"))
	if err == nil {
		_, err = both.Recv()
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Errorf("a stream without a key: got %v", err)
	}
	parts.Eventually(t, patience, "the access log does not tell refusals from successes", func() bool {
		log := gw.access.String()
		return strings.Contains(log, `"status":401`) && strings.Contains(log, `"reason":"unauthenticated"`)
	})
}

// deadlines makes calls that clients give too little time.
func deadlines(t *testing.T, c pb.TestServiceClient, service *callee, gw *inside, ca *parts.Authority) {
	t.Helper()
	for len(service.deadline) > 0 {
		<-service.deadline
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); err != nil {
		t.Fatal(err)
	}
	if left := <-service.deadline; left <= 0 || left > patience {
		t.Errorf("the instance was given %v", left)
	}
	// More calls than open a breaker, by clients that do not leave on their own.
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{RootCAs: ca.Pool()}}
	defer tr.CloseIdleConnections()
	client, url := &http.Client{Transport: tr, Timeout: patience}, "http://"
	if _, err := tls.Dial("tcp", gw.app.Addr("public"), &tls.Config{RootCAs: ca.Pool()}); err == nil {
		url = "https://"
	}
	message := append([]byte{0, 0, 0, 0, 8}, "\x1a\x06\x12\x04hang"...) // SimpleRequest{payload: {body: "hang"}}
	for i := range 25 {
		req, err := http.NewRequest("POST", url+gw.app.Addr("public")+"/grpc.testing.TestService/UnaryCall", bytes.NewReader(message))
		if err != nil {
			t.Fatal(err)
		}
		req.Header = http.Header{"Content-Type": {"application/grpc"}, "Te": {"trailers"}, "Grpc-Timeout": {"20m"}}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		// The instance's own status may be as fast as the gateway's.
		if got := resp.Header.Get("Grpc-Status") + resp.Trailer.Get("Grpc-Status"); resp.StatusCode != 200 || got != "4" {
			t.Fatalf("call %d: %s, grpc-status %q, reason %q", i, resp.Status, got, resp.Header.Get("X-Proconsul-Reason"))
		}
	}
	if _, err := c.UnaryCall(ctx, &pb.SimpleRequest{}); err != nil {
		t.Errorf("after calls whose clients gave them no time: %v", err)
	}
	s, err := parts.Status(gw.app.AdminAddr())
	if err != nil {
		t.Fatal(err)
	}
	if b := upstreamOf(s, "calls").Breaker; b.State != "closed" {
		t.Errorf("clients have opened the breaker by their deadlines: %+v", b)
	}
}
