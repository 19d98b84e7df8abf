package devcatalog

import "encoding/json"

// The shapes of Consul's answers. Their Go field names are the JSON ones, which
// is also how filters name them; `filter:"-"` hides a field from filters. A row
// that is in the catalog is never changed: a change replaces it.

const (
	passing  = "passing"
	warning  = "warning"
	critical = "critical"
)

// version is that of the Consul whose answers these are.
const version = "1.15.3"

type nodeRow struct {
	ID              string
	Node            string
	Address         string
	Datacenter      string
	TaggedAddresses map[string]string
	Meta            map[string]string
	CreateIndex     uint64 `filter:"-"`
	ModifyIndex     uint64 `filter:"-"`
}

type serviceAddress struct {
	Address string
	Port    int
}

type weights struct {
	Passing int
	Warning int
}

// proxyRow is what Consul shows of a service that is not a proxy.
type proxyRow struct {
	Mode        string
	MeshGateway struct{}
	Expose      struct{}
}

type connectRow struct {
	Native bool `json:",omitempty"`
}

// serviceRow is an instance in /v1/health/service and /v1/catalog/node.
type serviceRow struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]serviceAddress `json:",omitempty"`
	Meta              map[string]string         // null where there is none
	Port              int                       `json:",omitempty"`
	SocketPath        string                    `json:",omitempty"`
	Weights           weights
	EnableTagOverride bool
	Proxy             proxyRow
	Connect           connectRow
	PeerName          string
	CreateIndex       uint64 `filter:"-"`
	ModifyIndex       uint64 `filter:"-"`
}

type checkRow struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	Definition  struct{} `filter:"-"`
	CreateIndex uint64   `filter:"-"`
	ModifyIndex uint64   `filter:"-"`
}

// entryRow is one instance of /v1/health/service.
type entryRow struct {
	Node    *nodeRow
	Service *serviceRow
	Checks  []*checkRow
}

// catalogServiceRow is one instance of /v1/catalog/service.
type catalogServiceRow struct {
	ID                       string
	Node                     string
	Address                  string
	Datacenter               string
	TaggedAddresses          map[string]string
	NodeMeta                 map[string]string
	ServiceKind              string
	ServiceID                string
	ServiceName              string
	ServiceTags              []string
	ServiceAddress           string
	ServiceTaggedAddresses   map[string]serviceAddress `json:",omitempty"`
	ServiceWeights           weights
	ServiceMeta              map[string]string
	ServicePort              int
	ServiceSocketPath        string
	ServiceEnableTagOverride bool
	ServiceProxy             proxyRow
	ServiceConnect           connectRow
	CreateIndex              uint64 `filter:"-"`
	ModifyIndex              uint64 `filter:"-"`
}

// nodeServicesRow is the answer of /v1/catalog/node.
type nodeServicesRow struct {
	Node     *nodeRow
	Services map[string]*serviceRow
}

// agentServiceRow is a registration as the agent tells it.
type agentServiceRow struct {
	Kind              string `json:",omitempty"`
	ID                string
	Service           string
	Tags              []string
	Meta              map[string]string
	Port              int
	Address           string
	SocketPath        string                    `json:",omitempty"`
	TaggedAddresses   map[string]serviceAddress `json:",omitempty"`
	Weights           weights
	EnableTagOverride bool
	Connect           *connectRow `json:",omitempty"`
	ContentHash       string      `json:",omitempty" filter:"-"`
	Datacenter        string
}

// agentHealthRow is one instance of /v1/agent/health/service.
type agentHealthRow struct {
	AggregatedStatus string
	Service          *agentServiceRow
	Checks           []*checkRow
}

// memberRow is the one member of /v1/agent/members.
type memberRow struct {
	Name        string
	Addr        string
	Port        int
	Tags        map[string]string
	Status      int
	ProtocolMin int
	ProtocolMax int
	ProtocolCur int
	DelegateMin int
	DelegateMax int
	DelegateCur int
}

// selfConfig is the part of /v1/agent/self that clients look at.
type selfConfig struct {
	Datacenter        string
	PrimaryDatacenter string
	NodeName          string
	NodeID            string
	Revision          string
	Server            bool
	Version           string
	BuildDate         string
}

type selfRow struct {
	Config      selfConfig
	DebugConfig struct{}
	Member      memberRow
	Meta        map[string]string
	Stats       map[string]map[string]string
}

// keyRow is one key of /v1/kv. An empty value is null.
type keyRow struct {
	LockIndex   uint64
	Key         string
	Flags       uint64
	Value       []byte
	CreateIndex uint64
	ModifyIndex uint64
}

// serviceDefinition is the body of /v1/agent/service/register. Names are
// matched without case; those with an underscore are Consul's second spelling.
type serviceDefinition struct {
	Kind                   string
	ID                     string
	Name                   string
	Tags                   []string
	Address                string
	TaggedAddresses        map[string]serviceAddress
	TaggedAddressesSnake   map[string]serviceAddress `json:"tagged_addresses"`
	Meta                   map[string]string
	Port                   int
	SocketPath             string
	Check                  *checkDefinition
	Checks                 []*checkDefinition
	Weights                *weights
	Token                  string
	EnableTagOverride      bool
	EnableTagOverrideSnake bool `json:"enable_tag_override"`
	Proxy                  json.RawMessage
	Connect                *struct {
		Native         bool
		SidecarService json.RawMessage
	}
}

// checkFields are those that a service's check and an agent's check share.
type checkFields struct {
	Name                                string
	Notes                               string
	Status                              string
	ServiceID                           string
	ServiceIDSnake                      string `json:"service_id"`
	HTTP                                string
	Header                              map[string][]string
	Method                              string
	Body                                string
	DisableRedirects                    bool
	TCP                                 string
	Interval                            duration
	Timeout                             duration
	TTL                                 duration
	TLSServerName                       string
	TLSServerNameSnake                  string `json:"tls_server_name"`
	TLSSkipVerify                       bool
	TLSSkipVerifySnake                  bool `json:"tls_skip_verify"`
	SuccessBeforePassing                int
	FailuresBeforeWarning               int
	FailuresBeforeCritical              int
	DeregisterCriticalServiceAfter      duration
	DeregisterCriticalServiceAfterSnake duration `json:"deregister_critical_service_after"`
	OutputMaxSize                       int

	// What Consul can check and this server cannot.
	ScriptArgs             []string
	Args                   []string
	ScriptArgsSnake        []string `json:"script_args"`
	Shell                  string
	DockerContainerID      string
	DockerContainerIDSnake string `json:"docker_container_id"`
	H2PING                 string
	H2PingUseTLS           bool
	H2PingUseTLSSnake      bool `json:"h2ping_use_tls"`
	UDP                    string
	GRPC                   string
	GRPCUseTLS             bool
	GRPCUseTLSSnake        bool `json:"grpc_use_tls"`
	OSService              string
	AliasNode              string
	AliasService           string
	ProxyHTTP              string
	ProxyGRPC              string
}

// checkDefinition is a check in a service's registration: its id is CheckID.
type checkDefinition struct {
	CheckID string
	checkFields
}

// agentCheckDefinition is the body of /v1/agent/check/register: its id is ID.
type agentCheckDefinition struct {
	ID    string
	Token string
	checkFields
}

// catalogRegistration is the body of /v1/catalog/register.
type catalogRegistration struct {
	Datacenter      string
	ID              string
	Node            string
	Address         string
	TaggedAddresses map[string]string
	NodeMeta        map[string]string
	Service         *catalogServiceDefinition
	Check           *catalogCheckDefinition
	Checks          []*catalogCheckDefinition
	SkipNodeUpdate  bool
	PeerName        string
	CreateIndex     uint64
	ModifyIndex     uint64
}

type catalogServiceDefinition struct {
	Kind              string
	ID                string
	Service           string
	Tags              []string
	Address           string
	TaggedAddresses   map[string]serviceAddress
	Meta              map[string]string
	Port              int
	SocketPath        string
	Weights           *weights
	EnableTagOverride bool
	Proxy             json.RawMessage
	Connect           *struct{ Native bool }
	PeerName          string
	CreateIndex       uint64
	ModifyIndex       uint64
}

type catalogCheckDefinition struct {
	Node        string
	CheckID     string
	Name        string
	Status      string
	Notes       string
	Output      string
	ServiceID   string
	ServiceName string
	ServiceTags []string
	Type        string
	Interval    string
	Timeout     string
	ExposedPort int
	PeerName    string
	Definition  json.RawMessage
	CreateIndex uint64
	ModifyIndex uint64
}

// catalogDeregistration is the body of /v1/catalog/deregister.
type catalogDeregistration struct {
	Datacenter string
	Node       string
	ServiceID  string
	CheckID    string
	PeerName   string
}

// The sizes below are what the rows hold of the client's bytes, near enough to
// bound the sum.

func (n *nodeRow) size() int64 {
	return int64(len(n.ID)+len(n.Node)+len(n.Address)) + sizeOf(n.TaggedAddresses) + sizeOf(n.Meta)
}

func (s *serviceRow) size() int64 {
	size := int64(len(s.ID)+len(s.Service)+len(s.Address)+len(s.Kind)+len(s.SocketPath)) + sizeOf(s.Meta)
	for _, tag := range s.Tags {
		size += int64(len(tag)) + 16
	}
	for name, a := range s.TaggedAddresses {
		size += int64(len(name)+len(a.Address)) + 40
	}
	return size
}

func (c *checkRow) size() int64 {
	return int64(len(c.CheckID) + len(c.Name) + len(c.Notes) + len(c.Output) + len(c.ServiceID) + len(c.ServiceName) + len(c.Status) + len(c.Type))
}

func sizeOf(m map[string]string) int64 {
	var size int64
	for k, v := range m {
		size += int64(len(k)+len(v)) + 32
	}
	return size
}
