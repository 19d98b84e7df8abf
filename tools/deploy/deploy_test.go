// Package deploy holds the deployment files against the tools and types that
// they are for. It is a module of its own, so that the gateway's has none of
// them.
package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclparse"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

const deploy = "../../deploy/"

// built are the objects of a kustomization by kind and name, each decoded into
// its own type, strictly: a field that Kubernetes does not know is an error.
func built(t *testing.T, fs filesys.FileSystem, dir string) map[string]any {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(fs, dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]any{}
	for _, r := range made.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		var v any
		switch r.GetKind() {
		case "Deployment":
			v = &appsv1.Deployment{}
		case "Service":
			v = &corev1.Service{}
		case "ConfigMap":
			v = &corev1.ConfigMap{}
		case "PodDisruptionBudget":
			v = &policyv1.PodDisruptionBudget{}
		case "HorizontalPodAutoscaler":
			v = &autoscalingv2.HorizontalPodAutoscaler{}
		default:
			t.Fatalf("%s: a kind that this test does not know", r.GetKind())
		}
		if err := yaml.UnmarshalStrict(text, v); err != nil {
			t.Errorf("%s %s: %v", r.GetKind(), r.GetName(), err)
		}
		if r.GetNamespace() != "proconsul" {
			t.Errorf("%s %s is in namespace %q", r.GetKind(), r.GetName(), r.GetNamespace())
		}
		name, _, _ := strings.Cut(r.GetName(), "-")
		out[r.GetKind()+" "+name] = v
	}
	return out
}

func TestKubernetes(t *testing.T) {
	objects := built(t, filesys.MakeFsOnDisk(), deploy+"kubernetes")
	d, _ := objects["Deployment proconsul"].(*appsv1.Deployment)
	if d == nil {
		t.Fatal("no deployment")
	}
	pod := d.Spec.Template
	for key, value := range d.Spec.Selector.MatchLabels {
		if pod.Labels[key] != value {
			t.Errorf("the deployment does not select its own pods by %s", key)
		}
	}
	c := pod.Spec.Containers[0]
	security := c.SecurityContext
	if !*security.ReadOnlyRootFilesystem || *security.AllowPrivilegeEscalation || !slices.Contains(security.Capabilities.Drop, "ALL") || !*pod.Spec.SecurityContext.RunAsNonRoot {
		t.Error("the container may do more than it has to")
	}
	if c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/livez" || c.StartupProbe == nil || c.Lifecycle.PreStop.Sleep == nil {
		t.Error("probes or the wait before the end are missing")
	}
	ports := map[string]int32{}
	for _, p := range c.Ports {
		ports[p.Name] = p.ContainerPort
	}
	if s, _ := objects["Service proconsul"].(*corev1.Service); s == nil || ports[s.Spec.Ports[0].TargetPort.String()] == 0 {
		t.Error("the service leads to no port of the container")
	}
	budget := objects["PodDisruptionBudget proconsul"].(*policyv1.PodDisruptionBudget)
	if int32(budget.Spec.MinAvailable.IntValue()) >= *d.Spec.Replicas || pod.Labels["app.kubernetes.io/name"] != budget.Spec.Selector.MatchLabels["app.kubernetes.io/name"] {
		t.Error("no pod may ever be evicted, or others are guarded")
	}
	config, _ := objects["ConfigMap proconsul"].(*corev1.ConfigMap)
	if config == nil || !strings.Contains(config.Data["proconsul.yaml"], "version: 1") {
		t.Fatal("the configuration is not in its map")
	}
	// Grace must end before Kubernetes loses its patience: preStop, delay and grace.
	if *pod.Spec.TerminationGracePeriodSeconds <= 5+5+30 {
		t.Error("pods are killed before they have drained")
	}
}

// The optional part: more pods under load, whose number is then nobody else's.
func TestKubernetesAutoscaling(t *testing.T) {
	fs := filesys.MakeFsInMemory()
	for _, pattern := range []string{"*.yaml", "autoscaling/*.yaml"} {
		files, err := filepath.Glob(deploy + "kubernetes/" + pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			name := strings.TrimPrefix(f, deploy)
			if err := fs.WriteFile(name, []byte(strings.Replace(string(text), "# components: [autoscaling]", "components: [autoscaling]", 1))); err != nil {
				t.Fatal(err)
			}
		}
	}
	objects := built(t, fs, "kubernetes")
	h, _ := objects["HorizontalPodAutoscaler proconsul"].(*autoscalingv2.HorizontalPodAutoscaler)
	if h == nil || h.Spec.ScaleTargetRef.Name != "proconsul" || h.Spec.MaxReplicas <= *h.Spec.MinReplicas {
		t.Fatal("no autoscaler")
	}
	if d := objects["Deployment proconsul"].(*appsv1.Deployment); d.Spec.Replicas != nil {
		t.Error("the deployment fights with the autoscaler over the number of pods")
	}
}

// What the job is made of, as Nomad's job specification has it. A block or an
// attribute that is not here is an error, so a slip of the pen is one too.
type nomadFile struct {
	Variables []struct {
		Name        string         `hcl:"name,label"`
		Type        hcl.Expression `hcl:"type"`
		Default     hcl.Expression `hcl:"default"`
		Description string         `hcl:"description,optional"`
	} `hcl:"variable,block"`
	Job struct {
		Name        string         `hcl:"name,label"`
		Datacenters hcl.Expression `hcl:"datacenters"`
		Type        string         `hcl:"type"`
		Priority    int            `hcl:"priority"`
		Update      struct {
			MaxParallel      int    `hcl:"max_parallel"`
			MinHealthyTime   string `hcl:"min_healthy_time"`
			HealthyDeadline  string `hcl:"healthy_deadline"`
			ProgressDeadline string `hcl:"progress_deadline"`
			AutoRevert       bool   `hcl:"auto_revert"`
		} `hcl:"update,block"`
		Group struct {
			Name    string `hcl:"name,label"`
			Network struct {
				Mode string `hcl:"mode"`
				Port []struct {
					Name   string `hcl:"name,label"`
					Static int    `hcl:"static"`
				} `hcl:"port,block"`
			} `hcl:"network,block"`
			Service struct {
				Name  string   `hcl:"name"`
				Port  string   `hcl:"port"`
				Tags  []string `hcl:"tags"`
				Check struct {
					Name     string `hcl:"name"`
					Type     string `hcl:"type"`
					Path     string `hcl:"path"`
					Interval string `hcl:"interval"`
					Timeout  string `hcl:"timeout"`
				} `hcl:"check,block"`
			} `hcl:"service,block"`
			Restart struct {
				Attempts int    `hcl:"attempts"`
				Interval string `hcl:"interval"`
				Delay    string `hcl:"delay"`
				Mode     string `hcl:"mode"`
			} `hcl:"restart,block"`
			Task struct {
				Name   string `hcl:"name,label"`
				Driver string `hcl:"driver"`
				Config struct {
					Image          hcl.Expression `hcl:"image"`
					NetworkMode    string         `hcl:"network_mode"`
					Args           hcl.Expression `hcl:"args"`
					ReadonlyRootfs bool           `hcl:"readonly_rootfs"`
					CapDrop        []string       `hcl:"cap_drop"`
					SecurityOpt    []string       `hcl:"security_opt"`
				} `hcl:"config,block"`
				KillSignal    string `hcl:"kill_signal"`
				KillTimeout   string `hcl:"kill_timeout"`
				ShutdownDelay string `hcl:"shutdown_delay"`
				Template      []struct {
					Destination  string `hcl:"destination"`
					Env          bool   `hcl:"env,optional"`
					ChangeMode   string `hcl:"change_mode"`
					ChangeSignal string `hcl:"change_signal,optional"`
					Data         string `hcl:"data"`
				} `hcl:"template,block"`
				Resources struct {
					CPU       int `hcl:"cpu"`
					Memory    int `hcl:"memory"`
					MemoryMax int `hcl:"memory_max"`
				} `hcl:"resources,block"`
			} `hcl:"task,block"`
		} `hcl:"group,block"`
	} `hcl:"job,block"`
}

func TestNomad(t *testing.T) {
	file, problems := hclparse.NewParser().ParseHCLFile(deploy + "nomad/proconsul.nomad.hcl")
	if problems.HasErrors() {
		t.Fatal(problems)
	}
	var n nomadFile
	if problems := gohcl.DecodeBody(file.Body, nil, &n); problems.HasErrors() {
		t.Fatal(problems)
	}
	g := n.Job.Group
	if n.Job.Type != "system" || !g.Task.Config.ReadonlyRootfs || g.Task.KillSignal != "SIGTERM" || g.Service.Check.Path != "/readyz" {
		t.Errorf("the job is %+v", n.Job)
	}
	if c := g.Task.Template[0]; c.ChangeMode != "signal" || c.ChangeSignal != "SIGHUP" || !strings.Contains(c.Data, "token: \"${env:ADMIN_TOKEN}\"") {
		t.Errorf("a change of the configuration: %+v", c)
	}
	if !slices.ContainsFunc(g.Network.Port, func(p struct {
		Name   string `hcl:"name,label"`
		Static int    `hcl:"static"`
	}) bool {
		return p.Name == g.Service.Port
	}) {
		t.Errorf("the service has no port %s", g.Service.Port)
	}
}
