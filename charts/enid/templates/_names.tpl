{{- define "enid.name" -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "enid.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "enid.name" .) }}
{{- end }}

{{- define "enid.selector" -}}
app.kubernetes.io/name: enid
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "enid.labels" -}}
{{ include "enid.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "enid.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
