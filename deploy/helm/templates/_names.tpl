{{- define "enclave.labels" -}}
app.kubernetes.io/name: enclave
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
{{- define "enclave.annotations" -}}
io.katacontainers.config.hypervisor.kernel_params: enclave.config={{ sha256sum .Values.config }}
{{- if .Values.initdata }}
{{- if not (regexMatch "(?m)^config_identity *= *\"off\"" .Values.config) }}
{{- fail "initdata takes HOST_DATA and MRCONFIGID, which the gateway would hold its configuration against: say config_identity = \"off\" in config" }}
{{- end }}
io.katacontainers.config.hypervisor.cc_init_data: {{ .Values.initdata | quote }}
{{- end }}
{{- end }}
