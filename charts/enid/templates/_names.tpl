{{- define "enid.name" -}}
{{ .Values.fullnameOverride | default .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "enid.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "enid.name" .) }}
{{- end }}

{{- define "enid.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default "enid" }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "enid.labels" -}}
{{ include "enid.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "enid.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "enid.initImage" -}}
{{- $own := .Values.init.image }}
{{- $main := .Values.image }}
{{- $repository := $own.repository | default $main.repository }}
{{- if $own.tag }}{{ $repository }}:{{ $own.tag }}
{{- else if or $own.digest $main.digest }}{{ $repository }}@{{ $own.digest | default $main.digest }}
{{- else }}{{ $repository }}:{{ $main.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}

{{- /* Settings as environment variables. What is empty is not set; the names of node and pod come by another way. */}}
{{- define "enid.settings" -}}
{{- $settings := list }}
{{- range $name, $value := . }}
{{- if and (ne (toString $value) "") (not (has $name (list "MY_NODE_NAME" "MY_POD_NAME"))) }}
{{- $settings = append $settings (dict "name" $name "value" (toString $value)) }}
{{- end }}
{{- end }}
{{- toYaml $settings }}
{{- end }}
