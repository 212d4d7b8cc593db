//! Plugins: what is served beside resources, each under its own name.

use ::plugins::{Access, Output, Plugin, Request};
use hyper::StatusCode;

use crate::Broker;
use crate::administration::target;
use crate::api::{Call, Reply};
use crate::excerpt::excerpt;
use crate::refusal::Refusal;
use crate::resource_policy::Wanted;

impl Broker {
    /// Any method on `/<plugin>/…`: for an administrator or for a guest, as the plugin says.
    pub(crate) async fn plugin(&self, call: &Call, segments: &[&str]) -> Result<Reply, Refusal> {
        let [name, path @ ..] = segments else { return Err(Refusal::Path) };
        let plugin = self.plugins.iter().find(|plugin| plugin.name() == *name);
        let plugin = plugin.ok_or_else(|| Refusal::Plugin(excerpt(name)))?;
        let query = call.query_members();
        let request = Request { method: call.method.as_str(), path, query: &query, body: &call.body };
        let label = plugin.label(&request);
        let _running = self.metrics.plugin_request(label);
        let served = self.serve_by(&**plugin, call, &request).await;
        if served.is_err() {
            self.metrics.plugin_errors.get_or_create(&vec![("plugin_name", label.to_owned())]).inc();
        }
        served
    }

    async fn serve_by(&self, plugin: &dyn Plugin, call: &Call, request: &Request<'_>) -> Result<Reply, Refusal> {
        let Request { path, query, .. } = request;
        // A plugin elsewhere is not asked on behalf of strangers.
        if let Err(refusal) = self.token(call).await
            && self.admin.authorize(call.bearer(), &call.method, &call.uri()).await.is_err()
        {
            return Err(refusal);
        }
        match plugin.access(request).await? {
            Access::Administrator => {
                let administrator = self.administrator(call).await?;
                if administrator.tenant.is_some() {
                    return Err(self.not_own(call, &administrator));
                }
                let target = target(&format!("{} /{}/{}", call.method, plugin.name(), path.join("/")));
                let serving = async { Ok(plugin.handle(request, None).await?) };
                reply(self.administer(call, administrator, "use-plugin", &target, serving).await?)
            }
            Access::Guest => {
                let token = self.token(call).await?;
                let wanted = Wanted { plugin: plugin.name(), path, query };
                self.allowed(call, &token, None, &wanted).await?;
                let output = plugin.handle(request, token.init_data_claims().as_ref()).await?;
                if output.encrypted {
                    return self.release(call, &token, &wanted.to_string(), &output.body);
                }
                self.record_release(call, &token, &wanted.to_string())?;
                // Guests know one status of success.
                reply(Output { status: 200, ..output })
            }
        }
    }
}

fn reply(output: Output) -> Result<Reply, Refusal> {
    let status = StatusCode::from_u16(output.status).map_err(|_| Refusal::PluginStatus(output.status))?;
    Ok(Reply::text(output.body.to_vec(), "text/xml").with_status(status))
}
